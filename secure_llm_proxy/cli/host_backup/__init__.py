"""The encrypted backup that leaves the host: sets of database, segments and keys, and the way back. Behind scripts/backup
and scripts/restore.

A set is what its manifest names, and the manifest is written last: without it there is no set. Everything is encrypted with
`age` to a recipient whose private identity the host does not have.
"""
