"""Texts that programs make: records, worked mathematics and chats, from wording of each split."""
