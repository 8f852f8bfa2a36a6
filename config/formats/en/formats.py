"""Days as 22 Nov 2026, times on a 24-hour clock with their zone: everybody reads them the same way.

In a narrow column a day and its time may stand under each other; neither is broken itself.
"""

DATE_FORMAT = "j\xa0M\xa0Y"
TIME_FORMAT = "H:i"
DATETIME_FORMAT = f"{DATE_FORMAT}, {TIME_FORMAT}\xa0e"
SHORT_DATE_FORMAT = DATE_FORMAT
SHORT_DATETIME_FORMAT = DATETIME_FORMAT
