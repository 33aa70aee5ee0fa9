# The sqlite3 shell: joins, aggregates, indexes, transactions, recursion, full text, JSON.
# packages: sqlite3
cat >/tmp/t.sql <<'END'
pragma journal_mode = wal;
create table item(id integer primary key, name text, price real, kind integer);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 40000)
  insert into item select i, 'item' || (i * 7919 % 40009), (i * 31 % 997) / 7.0, i % 13 from n;
create index item_name on item(name);
create index item_kind on item(kind, price);
select kind, count(*), round(sum(price), 6), round(avg(price), 6), min(name) from item group by kind order by kind;
select a.id, b.id from item a join item b on b.name = 'item' || a.id where a.id between 100 and 110;
begin; update item set price = price * 1.5 where kind = 3; rollback;
begin; update item set price = price * 1.5 where kind = 4; commit;
select kind, printf('%.10f', total(price)) from item where kind in (3, 4) group by kind;
delete from item where id % 3 = 0; vacuum;
select count(*), sum(id), hex(substr(group_concat(name), 1, 20)) from item;
select json_extract('{"a": [1, {"b": "x"}]}', '$.a[1].b'), json_group_array(id) from (select id from item limit 5);
select id, row_number() over (partition by kind order by price desc, id) r, printf('%.6f', lag(price) over (order by id)) from item where id < 40;
with recursive mandel(y, x, re, im, n) as (
  select y, x, 0.0, 0.0, 0 from (select -10 y union select 0 union select 5), (select -15 x union select -5 union select 2)
  union all select y, x, re * re - im * im + x / 10.0, 2 * re * im + y / 10.0, n + 1 from mandel where n < 200 and re * re + im * im < 4)
  select y, x, max(n) from mandel group by y, x order by y, x;
select count(*) from item where name glob 'item1*7' and name like '%3%';
pragma integrity_check;
END
sqlite3 /tmp/t.db </tmp/t.sql
