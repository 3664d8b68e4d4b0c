"""Jobs and runs: their records, states and database, and the calls that make them."""
