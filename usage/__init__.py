"""The books: ledger, prices, rollups, reports, exports and the tasks that write them."""
