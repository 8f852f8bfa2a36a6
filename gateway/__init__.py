"""The call: authentication, validation, the upstream call, images, answers and errors."""
