import dataclasses
from tests.tiny_task import *
def test_bf(tmp_path, make_store):
    ts=[dataclasses.replace(tiny_task(tmp_path,make_store,zero={"stage":s,"persistence_threshold":t}, output=f"o{s}{t}"),dtype="bfloat16") for s,t in ((3,0),(3,300),(2,0),(1,0))]
    f32=tiny_task(tmp_path,make_store)
    c=run_workers("steps",[f32,*ts],tmp_path)[0]
    for x in c: print([round(l,4) for l,_ in x],[round(l,4) for _,l in x])
    print(run_workers("save_and_load",[f32,*ts],tmp_path))
