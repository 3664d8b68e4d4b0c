"""What tests share: tables, call logs, invariants, storage that fails."""
