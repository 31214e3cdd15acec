"""Hybrid contrastive distillation: a student learns from a teacher which points belong together."""
