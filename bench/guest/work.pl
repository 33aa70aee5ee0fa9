# Text work as perl programs do it: split, hashes, regular expressions, sort, sprintf, joins.
my ($x, %count, @lines) = (1);
for my $i (1 .. 20000) {
    $x = ($x * 1103515245 + 12345) & 0x7fffffff;
    push @lines, sprintf("%05d user%d %s /path/%x/file%d.txt", $i, $x % 97, $x % 3 ? "GET" : "PUT", $x % 4099, $x % 31);
}
for my $line (@lines) {
    my ($n, $user, $verb, $path) = split / /, $line;
    $count{$user}{$verb}++;
    $count{all}{$1}++ if $path =~ m{/([0-9a-f]+)/file(?:[12]\d?)\.txt$};
    (my $copy = $line) =~ s/(\d+)/<$1>/g;
    $count{length}{length $copy}++;
}
for my $user (sort { keys %{$count{$b}} <=> keys %{$count{$a}} || $a cmp $b } keys %count) {
    my $sum = 0;
    $sum += $_ for values %{$count{$user}};
    print join(" ", $user, scalar(keys %{$count{$user}}), $sum), "\n";
}
my $text = join "\n", @lines;
my $hits = () = $text =~ /user(\d)\1 \w+ \S*[aeb]\S*/g;
print "$hits ", length($text), " ", unpack("%32C*", $text), "\n";
