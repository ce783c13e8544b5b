from inrun_bench.methods.method import Method as Method
from inrun_bench.methods.registry import METHODS as METHODS
from inrun_bench.methods.registry import method_names as method_names
from inrun_bench.methods.registry import method_of as method_of
from inrun_bench.methods.registry import valued as valued
