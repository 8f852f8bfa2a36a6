"""A provider that runs on this machine: it speaks the OpenAI Images API, draws real pictures and fails on request."""
