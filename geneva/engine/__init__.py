"""The engine of a backfill: plan, hand out, commit, claim."""
