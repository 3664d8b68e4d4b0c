"""Jobs: what is wanted of them, what they report, and a handle on a running one."""
