"""Measurements that need training code: students on unseen rooms and real scans, and ablations."""
