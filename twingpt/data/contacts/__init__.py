"""Telephone numbers, KakaoTalk ids, postal, web and mail addresses: found, and brought into one form."""

from twingpt.data.contacts.forms import Contact, mask, standardise
from twingpt.data.contacts.labels import KINDS, Kind

__all__ = ["KINDS", "Contact", "Kind", "mask", "standardise"]
