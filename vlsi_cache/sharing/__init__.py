"""Sharing on the Hugging Face hub: cards of students and caches, and their upload."""

from vlsi_cache.sharing.cards import StudentFacts, cache_card, student_card
from vlsi_cache.sharing.pushing import push_to_hub
from vlsi_cache.sharing.upload import Upload, plan_upload

__all__ = [
    "StudentFacts",
    "Upload",
    "cache_card",
    "plan_upload",
    "push_to_hub",
    "student_card",
]
