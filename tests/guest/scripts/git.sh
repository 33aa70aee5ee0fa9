# git: commits, branches, merge, rebase, packs, clone; hashes depend on every byte.
# packages: git
# memory: 768M
# limit: 240
export HOME=/tmp GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@example.org GIT_COMMITTER_NAME=guest \
    GIT_COMMITTER_EMAIL=guest@example.org GIT_AUTHOR_DATE="2024-01-01T00:00:00Z" GIT_COMMITTER_DATE="2024-01-01T00:00:00Z"
git config --global init.defaultBranch main
git config --global advice.detachedHead false
mkdir /tmp/r && cd /tmp/r || exit 1
git init -q .
i=1
while [ $i -le 12 ]; do
    seq 1 $((i * 300)) >numbers
    echo "line $i" >>log
    mkdir -p "d$i" && echo $i >"d$i/f"
    git add -A && git commit -q -m "commit $i"
    i=$((i + 1))
done
git checkout -q -b topic HEAD~3
echo topic >topic && git add topic && git commit -q -m topic
git checkout -q main
git merge -q --no-edit topic -m "merge topic"
git log --format='%h %s' | head -5
git rev-parse HEAD 'HEAD^{tree}'
git checkout -q -b side HEAD~1
echo side >side && git add side && git commit -q -m side
git rebase -q main && git rev-parse HEAD
git gc -q && git count-objects -v | grep -E '^(in-pack|packs)'
git fsck --strict && echo "fsck ok"
git clone -q --no-local /tmp/r /tmp/c && git -C /tmp/c rev-parse HEAD
git diff --stat HEAD~4 | tail -1
git blame -s log | tail -2
git archive HEAD | sha256sum
git grep -n "line 7"
git bisect start -q HEAD HEAD~8 >/dev/null 2>&1 && git bisect run sh -c '! grep -q "line 9" log' 2>/dev/null | grep 'is the first'
exit 0
