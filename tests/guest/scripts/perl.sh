# perl: regular expressions, hashes, sorting, pack, big numbers, processes, signals.
# packages: perl
cat >/tmp/t.pl <<'END'
use strict; use warnings; no warnings 'recursion';
use Digest::SHA qw(sha256_hex); use Digest::MD5 qw(md5_hex); use Math::BigInt; use List::Util qw(sum reduce max); use POSIX qw(floor fmod strftime);
use Time::HiRes qw(usleep); use MIME::Base64; use Compress::Zlib; use Storable qw(dclone);
$| = 1;
my $x = 12345;
sub rnd { $x = ($x * 1103515245 + 12345) & 0x7fffffff; return $x }
my @n = map { rnd() } 1 .. 20000;
print "sort ", md5_hex(join ",", sort { $a <=> $b } @n), "\n";
print "sort text ", md5_hex(join ",", sort @n), "\n";
my %h; $h{$_ % 977}++ for @n;
print "hash ", join(" ", (map { "$_=$h{$_}" } sort { $h{$b} <=> $h{$a} || $a <=> $b } keys %h)[0 .. 4]), "\n";
my $text = join " ", map { sprintf "%x", $_ } @n;
my $c = () = $text =~ /([a-f])(\d+)\1/g;
(my $y = substr $text, 0, 60) =~ tr/a-f/A-F/;
print "regex $c $y\n";
print "bigint ", Math::BigInt->new(2)->bpow(521)->bsub(1), "\n";
print "factorial ", sha256_hex(Math::BigInt->new(300)->bfac()), "\n";
printf "float %.15g %.15g %.15g %.15g\n", sqrt(2), exp(1), atan2(1, 1) * 4, sin(1e6);
print "pack ", unpack("H*", pack("NnCdqa5", 1, 2, 3, 1.5, -7, "hello")), "\n";
print "zlib ", md5_hex(uncompress(compress($text))) eq md5_hex($text) ? "same" : "differs", "\n";
print "base64 ", encode_base64(pack("d>", 3.25));
print "sum ", sum(@n), " ", max(@n), " ", reduce { ($a ^ $b) } @n;
print "\n", strftime("%Y-%m-%d %j %U", gmtime 1700000000), "\n";
my @kids;
for my $i (1 .. 8) {
    my $pid = fork // die; 
    if (!$pid) { exit $i * 3 }
    push @kids, $pid;
}
print "fork ", join(" ", map { waitpid $_, 0; $? >> 8 } @kids), "\n";
my $got = 0;
local $SIG{USR1} = sub { $got++ };
for (1 .. 50) { kill USR1 => $$ }
print "signals $got\n";
open my $p, "-|", "seq 1 1000" or die; my $s = 0; $s += $_ while <$p>; close $p;
print "pipe $s\n";
my $r = eval { die { code => 42 } }; print "die $@->{code}\n";
print "div ", eval { 1 / ($x * 0) } // "caught: " . substr($@, 0, 24), "\n";
my $d = dclone({ a => [1, { b => 2 }] }); print "clone $d->{a}[1]{b}\n";
sub ack { my ($m, $n) = @_; $m == 0 ? $n + 1 : $n == 0 ? ack($m - 1, 1) : ack($m - 1, ack($m, $n - 1)) }
print "ackermann ", ack(2, 50), "\n";
END
perl /tmp/t.pl
