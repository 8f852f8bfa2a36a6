"""The admin's pages about providers, their keys and models, a tenant's model, and the page that people land on."""

from gateway.admin import catalogpages as catalogpages
from gateway.admin import dashboard as dashboard
from gateway.admin import tenantpages as tenantpages
