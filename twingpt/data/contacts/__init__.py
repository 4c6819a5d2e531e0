"""Telephone numbers, KakaoTalk ids, postal, web and mail addresses: in one form, in a store, checked in an output."""

from twingpt.data.contacts.labels import KINDS, Kind
from twingpt.data.contacts.store import ContactStore, fill
from twingpt.data.contacts.text import Contact, mask, standardise
from twingpt.data.contacts.verify import Span, verify_numbers

__all__ = ["KINDS", "Contact", "ContactStore", "Kind", "Span", "fill", "mask", "standardise", "verify_numbers"]
