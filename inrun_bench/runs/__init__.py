"""Runs: units of work, where their rows go, and what runs them. What is measured is handed to it."""
