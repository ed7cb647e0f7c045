"""What every room stands on: errors, database, clock, identifiers, secret values, strict JSON.

Nothing here knows a room, a door or a provider.
"""
