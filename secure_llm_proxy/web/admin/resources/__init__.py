"""The management API's resources, one module each. `ENDPOINTS` of a module names what `operations.OPERATIONS` calls for."""
