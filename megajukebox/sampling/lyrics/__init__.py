"""Which word is sung when: read off a prior's attention."""
