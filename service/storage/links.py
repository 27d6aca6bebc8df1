"""Which folders below another one to walk, where links may lead anywhere."""

from pathlib import Path


class Folders:
    """The folders that were walked: links to them, or to what lies around them, lead in circles."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.seen = {self._identity(self.root)} if self.root.exists() else set()

    def enter(self, path: str, link: bool) -> bool:
        """Whether to walk this folder, if it is still there.

        What a link into the root leads to is met anyway.
        """
        target = Path(path).resolve()
        if link and (target.is_relative_to(self.root) or self.root.is_relative_to(target)):
            return False
        try:
            identity = self._identity(target)
        except FileNotFoundError:  # deleted since its parent was listed
            return False
        new = identity not in self.seen
        self.seen.add(identity)
        return new

    @staticmethod
    def _identity(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_dev, found.st_ino
