"""What a teacher said of a text, kept in files: written here, or by DistillKit or axolotl; read as trainers want it."""

from .foreign import Axolotl, DistillKit
from .format import CacheSettings
from .reader import TeacherCache
from .stored import StoredTeacher
from .writer import write_cache

__all__ = ["Axolotl", "CacheSettings", "DistillKit", "StoredTeacher", "TeacherCache", "write_cache"]
