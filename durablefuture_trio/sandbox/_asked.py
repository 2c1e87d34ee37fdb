"""What an activation asked for: one order for the commands of calls, updates, markers and the end of the run."""

from __future__ import annotations

from durablefuture_trio.engine.commands import Command, signature_of_command


class AskedCommands:
    """The commands of the current activation, in the order they were asked for."""

    def __init__(self) -> None:
        self._commands: dict[int, Command] = {}
        self._cancels: dict[int, Command] = {}
        self._others = 0

    def add(self, command: Command) -> None:
        """Ask for something that cannot be taken back: the end of an update, a marker."""
        self._others -= 1
        self._commands[self._others] = command

    def has(self, signature: tuple[str, int, str]) -> bool:
        """Whether a command of this signature was asked for."""
        return any(signature_of_command(command) == signature for command in self._commands.values())

    def add_call(self, number: int, command: Command) -> None:
        """Ask for the call with this number (from 1): an activity, a child, a request to another workflow."""
        self._commands[number] = command

    def take_back(self, number: int) -> bool:
        """Forget a call. False: an earlier activation made it, and only a cancel can end it."""
        return self._commands.pop(number, None) is not None

    def cancel(self, number: int, command: Command) -> None:
        """Ask for the end of a call that an earlier activation made."""
        self._cancels[number] = command

    @property
    def anything(self) -> bool:
        """Whether something was asked for."""
        return bool(self._commands or self._cancels)

    def take(self) -> list[Command]:
        """Everything, and begin anew. Cancels come last and sorted: Trio cancels the tasks of a scope in the order of
        their addresses, which differs from process to process."""
        commands = list(self._commands.values())
        self._commands.clear()
        if self._cancels:
            commands.extend(self._ordered_cancels())
            self._cancels.clear()
        return commands

    def _ordered_cancels(self) -> list[Command]:
        return [self._cancels[number] for number in sorted(self._cancels)]

    def forget(self) -> None:
        """Let go of everything: the run has ended."""
        self._commands.clear()
        self._cancels.clear()
