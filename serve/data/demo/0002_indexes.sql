-- What the questions of the demonstration look for.

create index flights_by_dest on flights (dest);
create index flights_by_origin_hour on flights (origin, time_hour);
