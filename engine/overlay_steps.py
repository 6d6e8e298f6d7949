"""What a step of a migration means for an overlay, which has only some of the tables.

Pure. A step was made for a whole schema; an overlay takes part in those that change what it has.
Types and functions are shared, so that a value of one schema compares with a value of the other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    Tree,
    nodes,
    parse,
    pb,
    statement_nodes,
    type_name,
    unwrap,
    words,
    write,
)

#: Statements that name the relation they change, and the field that holds it.
_SUBJECTS: Final = {
    "AlterTableStmt": "relation",
    "AlterSeqStmt": "sequence",
    "CreatePolicyStmt": "table",
    "CreateTrigStmt": "relation",
    "IndexStmt": "relation",
    "RenameStmt": "relation",
}
#: What DROP takes by the name of a relation; of a trigger or policy the table's name comes first.
_DROPPED: Final = frozenset(
    {
        pb.OBJECT_TABLE,
        pb.OBJECT_INDEX,
        pb.OBJECT_SEQUENCE,
        pb.OBJECT_VIEW,
        pb.OBJECT_TRIGGER,
        pb.OBJECT_POLICY,
    }
)


class OverlayStep:
    """One step, read once for all overlays."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tree: Tree = parse(text)
        self._node: Node = statement_nodes(self._tree)[0]

    @property
    def new_keys(self) -> tuple[frozenset[str], ...]:
        """The pairs of tables that its foreign keys join, where both are there already."""
        if type_name(self._node) != "AlterTableStmt":
            return ()
        return tuple(
            frozenset({self._node.relation.relname, node.pktable.relname})
            for node in self._foreign_keys()
        )

    @property
    def joins_tables(self) -> bool:
        """Whether more tables may have to be kept apart after it: a new table's key, or a mark."""
        match type_name(self._node):
            case "CreateStmt":
                return bool(self._foreign_keys())
            case "CommentStmt":
                return bool(self._node.objtype == pb.OBJECT_TABLE)
        return False

    @property
    def view(self) -> str | None:
        """The view that it makes or replaces."""
        return str(self._node.view.relname) if type_name(self._node) == "ViewStmt" else None

    @property
    def drops(self) -> bool:
        """Whether it drops something, and perhaps what depends on that."""
        return type_name(self._node) == "DropStmt"

    @property
    def adopted_sequence(self) -> tuple[str, str] | None:
        """The sequence that it gives to a table, and the table."""
        if type_name(self._node) != "AlterSeqStmt":
            return None
        owner = self._owner()
        return None if owner is None else (self._node.sequence.relname, owner)

    def text_for(self, names: Collection[str]) -> str | None:
        """What to run in an overlay with relations of these names; None when it has no part."""
        node = self._node
        kind = type_name(node)
        if kind in _SUBJECTS:
            return self._text if getattr(node, _SUBJECTS[kind]).relname in names else None
        if kind == "CreateSeqStmt":
            return self._text if self._owner() in names else None
        if kind == "DropStmt" and node.remove_type in _DROPPED:
            return self._drop(names)
        return None

    def _foreign_keys(self) -> list[Node]:
        return [
            node
            for node in nodes(self._node)
            if type_name(node) == "Constraint" and node.contype == pb.CONSTR_FOREIGN
        ]

    def _owner(self) -> str | None:
        """The table that a sequence is made to belong to."""
        for option in map(unwrap, self._node.options):
            if option.defname == "owned_by":
                return words(unwrap(option.arg).items)[0]
        return None

    def _drop(self, names: Collection[str]) -> str | None:
        """The same DROP of those objects that the overlay has."""
        objects = list(self._node.objects)
        kept = [item for item in objects if words(unwrap(item).items)[0] in names]
        if len(kept) in (0, len(objects)):
            return self._text if kept else None
        tree: Tree = pb.ParseResult()
        tree.CopyFrom(self._tree)
        node = statement_nodes(tree)[0]
        del node.objects[:]
        node.objects.extend(kept)
        return write(tree)
