"""Everything between the daemon's decisions and the world, simulated: see `world`."""
