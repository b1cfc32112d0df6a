"""What trainers and commands of language models share: heads, vocabularies, documents, teacher caches, small models."""
