"""The admin's pages about usage: rollups, the ledger, prices, and events that couldn't be booked."""

from usage.admin import daily as daily
from usage.admin import ledgerpages as ledgerpages
from usage.admin import prices as prices
