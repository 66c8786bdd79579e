"""Jobs: what is asked for, how they are kept, what may happen to them, and who hears of it."""
