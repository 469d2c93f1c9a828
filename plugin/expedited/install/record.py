"""What was put onto the node, as written down there: the files, links, directories and lines that were not there before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from expedited.errors import ExpeditedError

__all__ = ["Record", "put_file"]

# Where it is, below the node's root.
_PLACE = "var/lib/expedited/installed.json"
_ORDINARY_MODE = 0o644
_LINKS_AT_MOST = 16


@dataclass
class Record:
    """The record of one node; every change goes through it.

    Each change is written down first and made then, so that one that was cut short in the middle is known.

    Attributes:
        root: The node's root directory; paths are kept as they are seen from there.
        say: Takes a line about each thing that was done.
        files: Path to the hash of what was written there; a symbolic link's to that of its target.
        lines: Path of a file that was there before, to the one line that was added to it.
        replaced: Path of such a file, to our line in it and the one that was there in its place.
        directories: In the order in which they were made.
        left: Whether a file of ours was not written this time, as somebody has changed it.
    """

    root: Path
    say: Callable[[str], None]
    files: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    left: bool = False

    @classmethod
    def read(cls, root: Path, say: Callable[[str], None]) -> Record:
        """The record of this node; an empty one where nothing was installed.

        Raises:
            ExpeditedError: it is there, and can't be read.
        """
        place = root / _PLACE
        try:
            data = json.loads(place.read_text(encoding="utf-8"))
            replaced = {path: list(pair) for path, pair in data.get("replaced", {}).items()}
            return cls(root, say, dict(data["files"]), dict(data["lines"]), list(data["directories"]), replaced)
        except FileNotFoundError:
            return cls(root, say)
        except OSError as problem:
            raise ExpeditedError(f"{place}: {problem.strerror}: run this as root") from problem
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise ExpeditedError(
                f"{place} is damaged: remove by hand what `expedited install` lists, then that file"
            ) from problem

    @property
    def empty(self) -> bool:
        """Whether nothing is installed."""
        return not (self.files or self.lines or self.replaced)

    # -- putting things in place ---------------------------------------------------------------------------------------

    def put(self, path: str, text: str, mode: int = _ORDINARY_MODE) -> bool:
        """Write a file of ours; True where that changed anything.

        Raises:
            ExpeditedError: somebody else's is there.
        """
        target = self._target(path)
        self._refuse_strangers(path, target)
        if self._holds(target, text.encode()) and target.stat().st_mode & 0o777 == mode:
            self._remember(path, text.encode())
            return False
        if target.exists() and not self._unchanged(path, target):
            self.say(f"left {path}: it was changed since; move it away to have it anew")
            self.left = True
            return False
        self._make_parents(target)
        self._remember(path, text.encode())
        put_file(target, text, mode)
        self.say(f"wrote {path}")
        return True

    def link(self, path: str, to: str) -> bool:
        """Make a symbolic link of ours; True where that changed anything.

        Raises:
            ExpeditedError: something else is there.
        """
        target = self._target(path)
        if target.is_symlink() and str(target.readlink()) == to:
            self._remember(path, to.encode())
            return False
        self._refuse_strangers(path, target)
        self._make_parents(target)
        self._remember(path, to.encode())
        target.unlink(missing_ok=True)
        target.symlink_to(to)
        self.say(f"linked {path} to {to}")
        return True

    def add_line(self, path: str, line: str) -> bool:
        """Put one line before all others of a file that is somebody else's; True where that changed anything."""
        target = self._at_the_end_of_links(path)
        text = target.read_text(encoding="utf-8")
        if self.lines.get(path) == line and text.startswith(line + "\n"):
            return False
        self.lines[path] = line
        self._write()
        _rewrite(target, f"{line}\n{text}")
        self.say(f"added a line to {path}: {line}")
        return True

    def replace_line(self, path: str, theirs: str, ours: str) -> None:
        """Put one line in the place of another of a file that is somebody else's."""
        target = self._at_the_end_of_links(path)
        self.replaced[path] = [ours, theirs]
        self._write()
        _rewrite(target, _with_line(target.read_text(encoding="utf-8"), theirs, ours))
        self.say(f"changed a line of {path}: {ours}")

    # -- taking them back ----------------------------------------------------------------------------------------------

    def take_back(self, path: str) -> None:
        """Take back one file, link or line, and then what was made for it alone."""
        target = self.root / path.lstrip("/")
        if path in self.lines or path in self.replaced:
            target = self._at_the_end_of_links(path)
            text = target.read_text(encoding="utf-8") if target.exists() else ""
            line = self.lines.pop(path, "") + "\n"
            ours, theirs = self.replaced.pop(path, ["", ""])
            if line.strip() and line in text:
                _rewrite(target, text.replace(line, "", 1))
                self.say(f"took our line out of {path}")
            if ours and ours in text.splitlines():
                _rewrite(target, _with_line(text, ours, theirs))
                self.say(f"put back a line of {path}: {theirs}")
        elif path in self.files:
            if target.is_symlink() or target.exists():
                if self._unchanged(path, target):
                    target.unlink()
                    self.say(f"removed {path}")
                else:
                    self.say(f"left {path}: it was changed since; remove it by hand if you don't want it")
            del self.files[path]
        self._write()

    def close(self) -> None:
        """Once all is taken back: the directories that were made for it, and the record itself."""
        if not self.empty:
            return
        (self.root / _PLACE).unlink(missing_ok=True)
        while self.directories:
            directory = self.directories.pop()
            try:
                (self.root / directory.lstrip("/")).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                self.say(f"left {directory}: it is in use by others")

    # -- below ---------------------------------------------------------------------------------------------------------

    def _target(self, path: str) -> Path:
        """Where a path of the node's is, seen from here.

        Raises:
            ExpeditedError: a directory on the way is a link that leads out of the root, as an absolute one does from here.
        """
        target = self.root / path.lstrip("/")
        if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(self.root)):
            raise ExpeditedError(f"{path}: a link on the way to it leads out of {self.root}: make it a relative one")
        return target

    def _at_the_end_of_links(self, path: str) -> Path:
        """The file itself, where configuration management has put a symbolic link: that stays."""
        target = self.root / path.lstrip("/")
        for _ in range(_LINKS_AT_MOST):
            if not target.is_symlink():
                break
            to = target.readlink()
            target = self.root / str(to).lstrip("/") if to.is_absolute() else target.parent / to
        return target

    def _refuse_strangers(self, path: str, target: Path) -> None:
        if (target.is_symlink() or target.exists()) and path not in self.files:
            raise ExpeditedError(f"{path} is there already, and not by `expedited install`: move it away first")

    def _remember(self, path: str, content: bytes) -> None:
        self.files[path] = hashlib.sha256(content).hexdigest()
        self._write()

    def _unchanged(self, path: str, target: Path) -> bool:
        content = str(target.readlink()).encode() if target.is_symlink() else target.read_bytes()
        return hashlib.sha256(content).hexdigest() == self.files[path]

    @staticmethod
    def _holds(target: Path, content: bytes) -> bool:
        return target.is_file() and not target.is_symlink() and target.read_bytes() == content

    def _make_parents(self, target: Path) -> None:
        missing = []
        parent = target.parent
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            directory.mkdir()
            self.directories.append(f"/{directory.relative_to(self.root)}")

    def _write(self) -> None:
        place = self.root / _PLACE
        self._make_parents(place)
        data = {
            "files": self.files,
            "lines": self.lines,
            "directories": self.directories,
            "replaced": self.replaced,
        }
        put_file(place, json.dumps(data, indent=1) + "\n", _ORDINARY_MODE)


def _with_line(text: str, old: str, new: str) -> str:
    return "".join(
        new + line[len(old) :] if line.rstrip("\n") == old else line for line in text.splitlines(keepends=True)
    )


def _rewrite(target: Path, text: str) -> None:
    """Somebody else's file: its mode and its owner stay."""
    status = target.stat()
    put_file(target, text, status.st_mode & 0o777, owner=(status.st_uid, status.st_gid))


def put_file(target: Path, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write a file in one go: whoever reads it meanwhile has the old one, or the new one."""
    unfinished = target.with_name(f".{target.name}.expedited")
    try:
        unfinished.write_text(text, encoding="utf-8")
        if owner is not None:
            os.chown(unfinished, *owner)
        unfinished.chmod(mode)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
