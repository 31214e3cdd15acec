"""Scenes made ready for distillation: read, lifted to 2D features, described by a teacher, written as shards."""
