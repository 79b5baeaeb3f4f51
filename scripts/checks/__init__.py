"""What no test has the time for: crashes, damage and sizes by the hundred; docs/guarantees.md."""
