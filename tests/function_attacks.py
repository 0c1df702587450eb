"""What a hostile program tries in a worker, each told in Perl, which every Debian holds; and how each language runs that.

An attack prints what it got, and that it has tried all; what it is to print says that it got nothing. PORT is one that somebody
listens to on the machine's loopback, SECRET the path of a file of the machine's.
"""

from __future__ import annotations

# Each runs its first argument with perl, in its own place or as its child.
STUBS = {
    "bash": 'exec perl -e "$@"',
    "node": 'const c = require("child_process");'
    'process.exitCode = c.spawnSync("perl", ["-e", ...process.argv.slice(2)], {stdio: "inherit"}).status',
    "perl": 'exec "perl", "-e", @ARGV',
    "php": '<?php pcntl_exec("/usr/bin/perl", ["-e", ...array_slice($argv, 1)]);',
    "python": 'import os, sys; os.execvp("perl", ["perl", "-e", *sys.argv[1:]])',
    "ruby": 'exec("perl", "-e", *ARGV)',
}

ATTACKS = {
    "a file of the machine": (
        r"""for my $path ("/etc/passwd", "/etc/shadow", "/root", "/home", "/var/log", "/run", "/sys", "/host", $ARGV[1]) {
            print "found $path\n" if -e $path }
        opendir(my $d, "/");
        print join(" ", grep { !/^(\.\.?|bin|code|dev|etc|lib\w*|opt|proc|sbin|tmp|usr)$/ } readdir $d), "\n";
        opendir($d, "/etc"); print join(" ", grep { !/^(\.\.?|alternatives)$/ } readdir $d), "\n";""",
        "\n\n",
    ),
    "a listener on the loopback, and on an abstract socket": (
        r"""use Socket; socket(my $s, AF_INET, SOCK_STREAM, 0) or die;
        print connect($s, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) ? "in" : "refused", "\n";
        socket(my $u, AF_UNIX, SOCK_STREAM, 0) or die;
        print connect($u, pack_sockaddr_un("\0attacked-$ARGV[0]")) ? "in" : "refused", "\n";""",
        "refused\nrefused\n",
    ),
    "more processes than it may have": (
        r"""my $n = 0; $SIG{CHLD} = "IGNORE";
        while ($n < 2000) { my $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } $n++ }
        print $n < 64 ? "stopped\n" : "got $n\n"; kill 9, -1; exit 0""",
        "stopped\n",
    ),
    "a GiB of memory": (r"""my $x = "x" x (1 << 30); print length $x, "\n";""", ""),
    "all room that it can write to": (
        r"""my ($sum, %seen) = (0); my $mb = "x" x (1 << 20);
        sub fill { my ($d) = @_; return if $seen{$d}++;
            for my $n (1 .. 400) { open(my $f, ">", "$d/fill$n") or last;
                for (1 .. 9) { defined syswrite($f, $mb) ? $sum++ : last } }
            opendir(my $h, $d) or return;
            for my $e (readdir $h) { next if $e =~ /^(\.\.?|proc|usr|sys)$/; fill("$d/$e") if -d "$d/$e" && !-l "$d/$e" } }
        fill("/."); print $sum <= 130 ? "bounded\n" : "wrote $sum MiB\n";""",
        "bounded\n",
    ),
    "its parent, and everyone": (r"""kill 9, 1; kill 9, getppid; kill 15, 1; print "alive\n"; kill 9, -1;""", "alive\n"),
    "its source": (
        r"""for my $how (">>", ">", "+<") { print "opened\n" if open(my $f, $how, "/code/source") }
        print "removed\n" if unlink "/code/source"; print "moved\n" if rename "/code/source", "/tmp/x";
        print "replaced\n" if symlink "/tmp/x", "/code/y"; print "changed\n" if chmod 0777, "/code/source", "/code";
        print "script\n" if open(my $f, ">>", "/opt/runtime.sh"); print "tried\n";""",
        "tried\n",
    ),
    "the memory of others": (
        r"""for my $p (1, getppid) { print "attached $p\n" if syscall(101, 16, $p, 0, 0) == 0;
            print "read $p\n" if open(my $f, "<", "/proc/$p/mem") && sysseek($f, 4096, 0) && sysread($f, my $b, 1) }
        print "traced\n" if syscall(101, 0, 0, 0, 0) == 0; print "tried\n";""",
        "tried\n",
    ),
    "descriptors that were left open": (
        r"""for my $n (3 .. 255) { print "open $n\n" if open(my $f, "<&=", $n) && -e $f } print "tried\n";""",
        "tried\n",
    ),
    "secrets in environments": (
        r"""print "$_=$ENV{$_}\n" for grep { !/^(PATH|HOME|LANG|CONTEXT|PWD|OLDPWD|SHLVL|_)$/ } sort keys %ENV;
        for my $f (glob "/proc/[0-9]*/environ") { open(my $e, "<", $f) or next; local $/; my $t = <$e> // "";
            print "$f\n" if $t =~ /attacked/ } print "tried\n";""",
        "tried\n",
    ),
    "a way out by links": (
        r"""my @to = ("/etc/passwd", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd", "/../../etc/passwd", $ARGV[1],
            "/proc/self/root/../etc/passwd", "/proc/1/fd/0", "/proc/1/root$ARGV[1]");
        my $n = 0; for my $t (@to) { $n++; symlink $t, "/tmp/l$n"; link $t, "/tmp/h$n";
            for my $p ("/tmp/l$n", "/tmp/h$n") { open(my $f, "<", $p) or next; my $l = <$f> // ""; print "$t: $l" if length $l } }
        my ($none, $at, $kind) = ("none", "/tmp/m", "tmpfs"); mkdir $at;
        print "mounted\n" if syscall(165, $none, $at, $kind, 0, 0) == 0;
        print "namespace\n" if syscall(272, 0x10000000) == 0; print "tried\n";""",
        "tried\n",
    ),
}
