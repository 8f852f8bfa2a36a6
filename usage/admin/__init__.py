"""The admin's pages about usage: rollups, the ledger, prices, events that couldn't be booked, and alarms."""

from usage.admin import alarmpages as alarmpages
from usage.admin import alerthistory as alerthistory
from usage.admin import alertpages as alertpages
from usage.admin import auditpages as auditpages
from usage.admin import daily as daily
from usage.admin import ledgerpages as ledgerpages
from usage.admin import prices as prices
from usage.admin import quarantinepages as quarantinepages
from usage.admin import savedpages as savedpages
from usage.admin import statementpages as statementpages
from usage.admin import unresolvedpages as unresolvedpages
