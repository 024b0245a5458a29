"""Ctrl-C once asks, twice stops, and afterwards everything is as before."""

from __future__ import annotations

import signal
import threading

import pytest

from optmerge.cli.signals import stop_on_interrupt


def test_first_signal_asks_and_second_stops() -> None:
    notes: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt(notes.append) as stop:
        assert stop() is None
        signal.raise_signal(signal.SIGINT)
        assert stop() == "interrupted by Ctrl-C"
        assert len(notes) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_scheduler_may_ask_too() -> None:
    with stop_on_interrupt(lambda text: None) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop() == "interrupted by SIGTERM"


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), stop_on_interrupt(lambda text: None):
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_on_interrupt(lambda text: None) as stop:
            seen.append((stop(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
