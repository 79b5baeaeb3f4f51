"""What things cost, measured side by side in one run; docs/cost.md has the figures."""
