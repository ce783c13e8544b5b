"""The ledger: the account of all scores, by sample and by step, in memory or on disk."""

from inrun_bench.attribution.ledger.ledger import ACCOUNTS, Entry, Ledger, MemoryPages, Pages
from inrun_bench.attribution.ledger.pages import ParquetPages

__all__ = ["ACCOUNTS", "Entry", "Ledger", "MemoryPages", "Pages", "ParquetPages"]
