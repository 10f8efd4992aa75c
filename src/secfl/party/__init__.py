"""What a party does on its own machine: keys, pinned manager, packing, voting, attesting, receiving."""
