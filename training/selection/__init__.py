"""Which few scenes to learn from: Algorithm 1 of GeoPurify, its published lists, and a way without labels."""
