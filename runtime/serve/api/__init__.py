"""The API's forms: the table of request fields, bodies, errors, replies, and the OpenAPI document of them all."""
