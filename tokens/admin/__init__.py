"""The admin's pages about tenants, their members, proxy tokens with their limits, and people."""

from tokens.admin import apikeypages as apikeypages
from tokens.admin import members as members
from tokens.admin import people as people
from tokens.admin import planpages as planpages
from tokens.admin import proxytokens as proxytokens
from tokens.admin import tenants as tenants
