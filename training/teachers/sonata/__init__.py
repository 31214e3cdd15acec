"""Sonata as a teacher: the encoder in plain torch, its input, and its answer for a point cloud (``docs/sonata.md``)."""

from training.teachers.sonata.config import SonataConfig
from training.teachers.sonata.encoder import Sonata
from training.teachers.sonata.errors import TeacherError
from training.teachers.sonata.teacher import SonataTeacher
from training.teachers.sonata.transform import SonataInput, prepare

__all__ = ["Sonata", "SonataConfig", "SonataInput", "SonataTeacher", "TeacherError", "prepare"]
