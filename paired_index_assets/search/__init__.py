"""From a query to rows, pictures and pages: mapped shards under one coarse search, metadata by id, results, HTTP."""
