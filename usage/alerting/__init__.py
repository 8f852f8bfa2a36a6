"""Quota alerts: found in the store's counters, told by e-mail and by signed webhooks, tried again for about a day."""
