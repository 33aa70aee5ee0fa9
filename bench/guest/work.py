# What python programs do all day: dictionaries, strings, objects, regular expressions, JSON, sorting, generators.
import json
import re


class Account:
    def __init__(self, name, balance):
        self.name = name
        self.balance = balance
        self.log = []

    def move(self, other, amount):
        if amount > self.balance:
            raise ValueError(self.name)
        self.balance -= amount
        other.balance += amount
        self.log.append((other.name, amount))


def bank(rounds):
    accounts = [Account(f"a{i}", 1000) for i in range(50)]
    refused, x = 0, 1
    for _ in range(rounds):
        x = x * 1103515245 + 12345 & 0x7FFFFFFF
        try:
            accounts[x % 50].move(accounts[x // 50 % 50], x // 2500 % 300)
        except ValueError:
            refused += 1
    return refused, sum(len(a.log) for a in accounts), max(a.balance for a in accounts)


def words(count):
    text = " ".join(f"w{i * i % 997}{'ing' if i % 3 else 'ed'}" for i in range(count))
    seen = {}
    for w in re.findall(r"[a-z]\d+(?:ing|ed)", text):
        seen[w] = seen.get(w, 0) + 1
    top = sorted(seen.items(), key=lambda p: (-p[1], p[0]))[:10]
    return re.sub(r"(\d)(\d)", r"\2\1", text)[:40], top


def primes(n):
    flags = bytearray([1]) * (n + 1)
    for i in range(2, int(n**0.5) + 1):
        if flags[i]:
            flags[i * i :: i] = bytes(len(range(i * i, n + 1, i)))
    return sum(flags) - 2


def tree(depth):
    return (depth, tree(depth - 1), tree(depth - 1)) if depth else None


def count(node):
    return 0 if node is None else 1 + count(node[1]) + count(node[2])


def documents(rounds):
    value = {"list": [{"id": i, "text": "x" * (i % 20), "half": i / 2} for i in range(200)]}
    for _ in range(rounds):
        value = json.loads(json.dumps(value))
        value["list"].reverse()
    return value["list"][0]["id"]


print(bank(60000))
print(words(12000))
print(primes(200000))
print(count(tree(14)))
print(documents(40))
print(sum(a * b for a in range(300) for b in range(300) if (a ^ b) & 1))
